"""Flower ServerApp and ClientApp, engines and strategies."""

"""A federation as real Flower processes: its folders, keys, SuperLink, SuperNodes and runs. Needs no torch."""

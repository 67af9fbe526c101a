"""Secure aggregation: the server learns the weighted sum of what clients send, and of no client what it sent.

The protocol of Bonawitz et al. (CCS 2017, doi:10.1145/3133956.3133982) for a server that is curious but follows the
protocol, with both its masks and its recovery of clients that drop out. A round has four stages, each of them one
message of every client: ``keys``, ``shares``, ``masked`` and ``reveal``. Nothing here knows how messages travel.

Keys, seeds and shares come from the operating system, not from the seed of the run: whoever knows the run's
configuration could otherwise take every mask off. Results are nevertheless a function of the configuration alone, as
masks are added and taken off modulo :math:`2^{64}`, without a rounding: what is left is the same integer whatever
they were.
"""

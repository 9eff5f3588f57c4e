"""The stream against its peers: `make bench-data`."""

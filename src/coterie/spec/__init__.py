"""What every request is made of: frozen settings, the few types they share, and their digests."""

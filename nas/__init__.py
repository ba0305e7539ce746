"""Hardware-aware architecture search for hybrid vision networks."""

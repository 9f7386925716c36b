"""Jobs as processes of this host."""

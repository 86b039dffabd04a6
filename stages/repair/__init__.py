"""Repair of a backdoored CLIP: one file a method, all of them trained by one loop."""

"""What belongs to an object in 3D: selections, their measures and their files."""

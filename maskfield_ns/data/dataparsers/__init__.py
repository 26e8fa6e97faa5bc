"""nerfstudio dataparsers for the benchmarks.

These modules are loaded while nerfstudio's datamanagers are half imported: they may import nothing of nerfstudio but
its dataparsers, cameras and plugin registry, and nothing here that imports more.
"""

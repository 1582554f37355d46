"""CDVFT adapters: products of circulant and diagonal matrices, stored as vectors, applied by 1-D FFT.

The package is a set of small modules; import what is needed from them. Importing `cdvft` itself loads nothing heavy.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]

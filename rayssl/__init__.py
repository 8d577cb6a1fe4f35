"""rayssl: does a self-supervised task help my agent, or my classifier?"""

__version__ = "0.1.0"

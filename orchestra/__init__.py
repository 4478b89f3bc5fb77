"""Orchestra: named, vetted work on named hosts, and one true answer per host."""

__version__ = "0.1.0"

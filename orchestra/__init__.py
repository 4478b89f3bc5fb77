"""Orchestra: named, vetted work on named hosts, and one true answer per host."""

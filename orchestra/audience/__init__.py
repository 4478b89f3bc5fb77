"""Those who ask for work: the Perspective Broker seat and the library that talks to it."""

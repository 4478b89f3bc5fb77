"""The minds: pure objects that take an event and return what to save and what to say. No clock, no socket, no disk."""

"""How fast it is, shown: emulated players, the cases of ``orchestra bench``, their floors, table and picture."""

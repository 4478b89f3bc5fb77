"""The real conductor and the real players in one thread, on a virtual clock, under every fault that chance can think of.

One seeded ``random.Random`` decides all of it, so a seed is a story that can be told again. From ``tests/``::

    python -m simulation --seed 7              one story; its trace, if a promise is broken in it
    python -m simulation --seed 7 --seeds 5000 as many stories as you like; with ``--counts`` what there was in them
    python -m simulation --seed 7 --plant spawn_before_save

``clockwork`` has the clock and the processes on it, ``network`` what they say to each other, ``disks`` what they keep,
``machine`` the nodes' processes and the stage, ``world`` puts the house together, ``nemesis`` breaks it, ``checker``
asserts the promises, ``run`` is a story from its seed to its end, ``tellers`` tell many, ``plants`` are bugs that must
be found.

Left out: TLS (identities are handed in, as real certificates), the audience's sockets (the desk is asked directly),
and forking: the stage here keeps the documented rules of the real one, speaks its frames, and its processes are
entries in a table. The real stage is tried with real processes elsewhere.
"""

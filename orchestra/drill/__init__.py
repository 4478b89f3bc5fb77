"""The drill: the delivery contract, tried on one's own machine with real daemons, real faults and a real ledger."""

"""Who is who: the certificate authority, TLS contexts, names from certificates."""

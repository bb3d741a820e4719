"""Evidence: the paper's claims as studies, tables and figures."""

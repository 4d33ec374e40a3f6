"""All of Ray: nothing outside this package imports it."""

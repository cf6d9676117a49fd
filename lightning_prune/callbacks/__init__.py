"""Lightning callbacks: thin shells that decide when."""

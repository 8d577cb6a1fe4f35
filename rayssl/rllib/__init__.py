"""RLlib adapters: they move data between Ray and the Ray-free core, and do no arithmetic."""

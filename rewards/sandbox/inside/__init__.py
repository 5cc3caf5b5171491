"""Programs that run inside the sandbox, started from their source text: standard library only, no imports of ours."""

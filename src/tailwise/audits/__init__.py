"""The audit: what came out (`audit`, `codec`: no torch, no checkpoint) and how it comes out (`run`)."""

"""Self-supervised speech pretraining: BEST-RQ and BiRQ, from audio to error rates."""

"""Figures of merit from embeddings; knows neither the trainer nor the models."""

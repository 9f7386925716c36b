"""The DiLoCo trainer, an executor that trains one model."""

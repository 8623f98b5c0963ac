"""The decoder, its weights, and the heads of policy, PRM and critic."""

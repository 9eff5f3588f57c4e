"""Models, objectives, the loop. Pure torch; runs on a laptop."""

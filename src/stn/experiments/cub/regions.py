"""The size of a window, and the regions of a bird."""

SCALE = 0.5  # the side of a window, as a fraction of the image's (paper, section 4.3)
# The parts that CUB-200-2011 annotates, by the two regions that the paper's windows find: head and body.
REGIONS = {
    "head": ("beak", "forehead", "crown", "left eye", "right eye", "nape", "throat"),
    "body": ("breast", "belly", "back", "left wing", "right wing", "left leg", "right leg", "tail"),
}

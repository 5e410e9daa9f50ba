"""Pure array functions: boxes, NMS, RoI pooling, masked reductions."""

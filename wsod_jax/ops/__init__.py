"""Pure array functions: boxes, masks, geometry of views, NMS, RoI pooling, masked reductions."""

"""Pure array functions: boxes, masks, views, NMS, RoI pooling, soft proposals, class activation maps, dense CRF."""

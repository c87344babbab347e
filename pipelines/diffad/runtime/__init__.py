"""What runs an exported model, without torch and diffusers: numpy, scipy, pillow, and onnxruntime or openvino."""

from .detector import Detections, Detector

__all__ = ["Detections", "Detector"]

"""The edge core: run models with numpy, Pillow and one backend."""

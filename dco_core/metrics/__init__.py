"""What the paper measures: likeness and prompt alignment of pictures, and how far a model went from its base.

    image_image.py      DINOv2 image similarity (subject), SigLIP image similarity (style)      App. D.4
    image_text.py       SigLIP image-text score                                                 App. D.4
    judge.py            a vision-language model's points, by the rubric of DreamBench++         arXiv 2406.16855
    noise_distance.py   distance of the predictions of theta and phi over t                     Sec. 5.4, Fig. 8c
    collateral.py       change of pictures of other things

The alignment of two LoRAs (App. B, Fig. 10): merging/compatibility.py. The Toy World has scorers of its own:
toy_world/scorer.py. transformers is imported when a model is loaded.
"""

from .collateral import collateral_rmse
from .image_image import image_similarity, mean_cosine_similarity
from .image_text import SiglipScorer, load_siglip, siglip_score
from .judge import Judge, load_judge
from .noise_distance import NoiseDistance, noise_distance
from .pretrained import ImageEncoder, load_image_encoder

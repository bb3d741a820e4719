"""The English words by which captions are checked and drafted. Data only: a word added to a list counts at once.

Words are parted by spaces. `_` stands for a space, a hyphen or nothing: close_up is also close-up, close up, closeup.
"""

# --- what a comprehensive caption names

VIEW = """
close_up closed_up close_ups side_view front_view rear_view back_view view views viewed viewpoint perspective portrait
angle angled low_angle high_angle wide_angle eye_level from_above from_below from_behind seen_from from_the_side
from_the_front from_the_back from_the_left from_the_right from_the_top wide aerial bird's_eye birds_eye top_down
overhead full_body half_body upper_body full_length headshot profile shot framing framed centered centred cropped
zoomed fish_eye telephoto flat_lay facing macro depth_of_field bokeh three_quarter looking_at_the_camera on_the_left
on_the_right in_the_middle in_the_center in_the_centre in_the_foreground at_the_left at_the_right at_the_center
at_the_centre to_the_left to_the_right
"""
PHOTO = "photo photos photograph photographs photographic snapshot selfie"
MEDIUM = """
style styled painting painted watercolor watercolour cartoon illustration illustrated illustrations macro drawing drawn
sketch 3d_render render rendering rendered cgi anime manga comic pixel_art line_art clip_art vector_art line_drawing
woodcut linocut engraving etching lithograph oil_painting acrylic gouache pastel crayon charcoal origami mosaic collage
claymation low_poly isometric ukiyo-e cubism cubist impressionism impressionist surrealism surrealist minimalist
pop_art graffiti mural fresco embroidery stained_glass papercut paper_cut screen_print risograph screenshot artwork
photography black_and_white monochrome sepia polaroid cinematic hyperrealistic photorealistic realistic
"""
BACKGROUND = """
background backgrounds backdrop backdrops outdoors outdoor indoors indoor surroundings surrounded scenery landscape
scene
"""
# a place follows these
PREPOSITION = """
in on at over under below above into onto through upon atop across around between amid amidst among amongst along
alongside within outside inside against near beside besides behind beneath underneath by_a by_an by_the close_to next_to
in_front_of in_the_middle_of in_the_center_of in_the_centre_of in_the_corner_of on_top_of on_the_top_of on_the_side_of
on_edge_of on_the_edge_of on_the_left_side_of on_the_right_side_of at_the_edge_of at_the_foot_of at_the_end_of
at_the_top_of at_the_bottom_of
"""
# but not where one of these follows: "in a hat", "at the camera", "on the left"
NO_PLACE = """
left right middle center centre camera viewer lens side focus profile motion detail details style view shot angle level
portrait close-up closeup photo picture image photograph color colour monochrome film foreground frame hat dress costume
sweater coat suit shirt jacket uniform collar glasses sunglasses scarf leash legs leg paws paw feet back head face mouth
hand hands arm arms neck all it them him her
"""

# --- nouns and what is none

PICTURE = "image photo photograph picture scene illustration drawing painting artwork"
# with PICTURE, what may stand before the subject: "a portrait of", "a side-view of"
SIGHT = "portrait shot view close_up cartoon snapshot selfie sketch render rendering"
# with PREPOSITION, these are never what a caption is about
STOP = """
a an the and or but with without of by to from for as is are was were be being that which who whose while it its his her
their this these those front next sits sit stands stand lies lie lays looks look wears holds has have runs walks sleeps
rests poses works plays up down very sitting standing
"""
DETERMINER = "a an the my one two three some"
GENERIC = "animal creature object item subject figure thing"  # what a model may call the subject instead

# --- identifiers of DreamBooth tutorials, which are no words; short abbreviations that people write are left out

RARE = "sks ohwx okwx zwx zwxx shs bnha olis ukj xyz zxc qwx xjy xjq lkj zkz vtn sksdog TOK"

# --- what vision-language models say around a caption

THOUGHT = "think thinking reasoning"
TAG = "s bos eos pad unk image img answer caption output response"  # <s> and the like
ROLE = "assistant model gpt bot"
POLITE = "sure_thing sure certainly of_course okay ok absolutely great here_you_go"
ANNOUNCING = "here_is here's here_are below_is this_is the_following_is"
CAPTION = "caption description sentence prompt option answer output response"
CAPTION_KIND = "final image suggested one-sentence"
SHOWS = "shows depicts features captures displays presents portrays showcases contains illustrates is_of"
CHATTER = """
let_me_know i_hope_this i_hope_that would_you_like feel_free note: please_note word_count this_caption option_2
option_two
"""
REFUSAL = """
sorry i'm_sorry i_am_sorry i'm_really_sorry i'm_very_sorry i_am_really_sorry i_am_very_sorry i'm_unable i_am_unable
i_cannot i_can't i_can_not i_do_not_see i_don't_see as_an_ai unfortunately
"""
MADE = "rendered drawn painted done depicted illustrated created presented shown"  # "..., painted in flat style"

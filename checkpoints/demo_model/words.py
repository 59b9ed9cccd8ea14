"""Word lists for the spelling, sorting and reading tasks."""

from __future__ import annotations

import numpy as np

from checkpoints.demo_model.grammar import choose

# Common words of three to eight letters.
COMMON = """
able acid acorn actor after again agent alarm album alley almond amber anchor angel animal ankle answer apple april
apron arch arena armor arrow artist atlas atom aunt autumn award baby back bacon badge baker ball bamboo banana band
bank barn basket bath beach bean bear beaver bed bee beetle bell belt bench berry bike bird bishop blanket block bloom
board boat body bone book boot border bottle bottom bowl box brain branch brave bread breeze brick bridge bright broom
brother bubble bucket budget buffalo bug bull bus bush butter button cabin cable cactus cake camel camera camp canal
candle candy canoe canyon cape captain carbon card cargo carpet carrot cart castle cat cattle cave cedar cell cello
chain chair chalk charm cheese cherry chess chest child chin circus city clay clean clear cliff clock cloth cloud
clover coach coal coast coat coconut coffee coin comet compass cookie copper coral corn corner cotton couch cousin
cow crab cradle crane cream creek cricket crop crow crown crystal cup curtain curve daisy dance dark dawn deer delta
desert desk dinner doctor dog dollar dolphin donkey door dragon dream dress drop drum duck dust eagle ear earth east
echo edge egg elbow eleven elm ember engine evening fabric face factory falcon family farm farmer feather fence fern
ferry fiber field fig film finger fire fish flag flame flower flute fog forest fork fort fox frame frog frost fruit
galaxy game garage garden garlic gate giant ginger giraffe glass globe glove goat gold goose grain grape grass gravel
guitar hammer harbor harp hat hawk hazel helmet hen herb hill hip hockey holiday honey hood hook horn horse hotel
house hut ice igloo ink insect iron island ivory jacket jam jar jewel juice jungle juniper kettle key king kitchen
kite kitten knee knife knot ladder lake lamb lamp lantern laptop lark lava lawn leaf leather lemon lens letter level
library light lily lime lion lip liquid lizard lobster lock log lotus lunch magnet mango maple marble market mask
meadow medal melon metal meteor middle milk mill mint mirror mist model monkey moon morning moss moth motor mountain
mouse mouth museum music nail needle nephew nest net night noodle north nose novel number nurse oak oasis oat ocean
office oil olive onion orbit orchard organ otter oven owl oyster paddle page paint palace palm panda paper parade
parent park parrot party path peach peanut pear pearl pebble pencil penguin people pepper piano picnic pigeon pillow
pilot pine pipe pizza plane planet plate plum pocket poem poet pond pony poppy potato prince prize pump pumpkin puppy
purse puzzle quail quartz queen quiet quilt rabbit radio radish rain raven record reef ribbon rice ridge river road
robin robot rocket roof room root rope rose ruby rug ruler saddle sail salad salmon salt sand sauce scarf school
scissor sea season seed shadow shark sheep shell shield ship shirt shoe shop shore shovel silk silver singer sister
sky sled sleep smile smoke snail snake snow soap sock soil soldier song soup south spice spider spinach spoon spring
spruce squid stable stage stair station steam steel stem stone storm story stove straw street string student sugar
suit summer sun supper swan sweater swim sword table tail tailor tea teacher teapot temple tennis tent theater thumb
thunder ticket tiger timber tin tip toast tomato tooth tower town toy tractor trail train tray tree trout truck
trumpet tulip tunnel turkey turnip turtle uncle valley vase velvet village vine violet violin voice volcano wagon
waist wall walnut walrus water wave wax weather west whale wheat wheel whistle willow wind window wing winter wolf
wood wool world worm wrist yacht yard year yogurt zebra zinc
""".split()

NAMES = (
    "Anna Ben Carla David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Vera "
    "Tom Lily Max Ella Oscar Nina Hugo Ruth Omar Zoe Alex Maria"
).split()
THINGS = (
    "apples pears books coins stamps marbles cards shells pens cookies balls eggs lemons stickers buttons stones "
    "pencils keys roses cups"
).split()

_ONSETS = "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sh sk sl sp st th tr".split()
_VOWELS = "a e i o u a e i o ai ea ee oa oo ou".split()
_CODAS = ["", "", "", *"b ck d g l m n nd ng nt p r rk rn s st t x".split()]


def made_up(rng: np.random.Generator) -> str:
    """A word-like string of one or two syllables that no list holds."""
    syllables = 1 + int(rng.random() * 2)
    return "".join(choose(rng, _ONSETS) + choose(rng, _VOWELS) + choose(rng, _CODAS) for _ in range(syllables))


def letters(rng: np.random.Generator, low: int, high: int) -> str:
    """Random letters, so that reading and reversing cannot lean on knowing words."""
    return "".join(choose(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(int(rng.integers(low, high + 1))))


def any_word(rng: np.random.Generator, longest: int) -> str:
    """A real, made-up or random word of at most `longest` letters."""
    while True:
        kind = rng.random()
        word = choose(rng, COMMON) if kind < 0.5 else made_up(rng) if kind < 0.75 else letters(rng, 2, longest)
        if len(word) <= longest:
            return word

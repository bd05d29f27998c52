"""What can happen in the demo's world: event patterns for each of the six emotions, and neutral ones.

A pattern is a clause in the past tense. `[a|b]` is a choice, `{I}`, `{me}`, `{my}` and `{was}` stand for the
person it happens to ("you ... your ... were", "Mia ... her ... was"). Every way of filling a pattern's choices is one
event, so that an event can be held out while its words are known from other events. No pattern names an emotion.
"""

EMOTIONS = ("happiness", "sadness", "anger", "fear", "disgust", "surprise")

PATTERNS: dict[str, str] = {
    "happiness": """
{I} won [first prize|a gold medal|the silver cup] in the [swimming race|chess match|baking contest|spelling contest|singing contest]
{my} [best friend|favourite cousin|grandmother|aunt|brother] came to visit and brought [a lovely cake|fresh strawberries|a new kite|chocolate for everyone]
{I} passed the [piano|maths|driving|swimming|dance] exam with [the best mark of all|full marks|a shining grade]
{my} [dog|cat|pony|rabbit] got well again and [jumped into {my} arms|played with {me} all afternoon|licked {my} hand]
{my} [mother|father|teacher|coach|grandfather] praised {me} warmly for [{my} drawing|{my} song|{my} kind help|{my} good work]
{I} danced and laughed with {my} friends at the [birthday party|summer fair|beach|wedding|school concert]
{I} spent a sunny day [at the lake|in the garden|on the beach|by the river|in the mountains] with [{my} whole family|{my} dearest friends|{my} grandparents]
{my} [team|class|choir|band] won the [final|big game|great cup|yearly prize] and everybody [cheered|sang|hugged {me}]
{I} got the [puppy|bicycle|guitar|tree house] that {I} had [always dreamed of|wished for all year|hoped for since spring]
{my} [baby sister|little nephew|newborn cousin] [smiled at {me}|took a first step towards {me}|held {my} finger] for the very first time
{I} married the [kind baker|gentle teacher|young sailor] {I} loved, and [the bells rang|all the guests danced|the sun shone]
the [letter|phone call|message] said that {I} had been chosen for the [school play|dream job|city team|summer camp]
{I} came home after a [long trip|year abroad|week in hospital] and {my} [family|children|old dog] ran to welcome {me}
""",
    "sadness": """
{my} [old dog|cat|pony|rabbit|little bird] died [in {my} arms|during the night|after a long illness]
{my} [best friend|sister|favourite teacher|neighbour] moved away to [another country|a far city|the other side of the sea] for ever
{I} stood alone at the grave of {my} [grandmother|grandfather|aunt|old teacher] in the [rain|cold wind|falling snow]
{I} lost the [ring|necklace|photograph|watch] that {my} late [mother|father|grandmother|uncle] had left {me}
nobody came to {my} [birthday party|farewell dinner|concert|wedding], and {I} [ate the cake alone|sat by the empty chairs|put the candles away]
the [doctor|nurse|letter] said that {my} [father|mother|brother|dear friend] would never [walk|wake up|come home] again
{I} said goodbye to {my} [parents|children|sister|sweetheart] at the [station|harbour|airport] for [a very long time|the last time|many years]
{my} childhood home was [torn down|sold to strangers|left empty], and only [the old tree|a broken swing|a heap of stones] was left
{I} found the [old letters|toys|last picture] of {my} [lost child|dead brother|late husband|late mother]
{my} [friends|classmates|cousins] all went [to the fair|on a trip|to the lake] and left {me} behind alone
{I} [failed|lost] the [last exam|final game|great race] after a year of hard work and [wept at home|went home alone|sat in silence]
{my} [garden|apple tree|rose bush] had withered, the one that {my} late [grandfather|wife|sister] had planted
{my} [wife|husband|sweetheart] [left {me}|packed and went away|stopped loving {me}] after [ten years|a long winter|all those summers]
""",
    "anger": """
a [stranger|boy|neighbour|customer] [pushed|shoved|kicked] {me} on purpose in the [queue|bus|hallway|street]
{my} [boss|neighbour|brother|classmate] blamed {me} for [a mistake|a broken window|a theft|a lie] that was not {my} fault
someone [scratched|smashed|stole|damaged] {my} [new car|bicycle|scooter|motorbike] and [drove off laughing|did not even say sorry|denied everything]
{my} [sister|roommate|cousin|colleague] [lied to {me}|broke {my} trust|cheated {me}] about the [money|house|contract] again
the [clerk|waiter|official|driver] was rude to {me} and [refused to help|laughed at {my} question|threw {my} papers on the floor]
{my} [brother|roommate|classmate] [ruined|tore up|threw away] {my} [homework|drawing|best shirt|notebook] on purpose
the [neighbours|teenagers|workers] played loud music [all night|until dawn|for hours] although {I} had asked them [three times|again and again|politely] to stop
{my} [boss|manager|coach] took the credit for {my} [idea|work|plan] and [mocked|insulted|dismissed] {me}
a [man|woman|driver] cut in front of {me} and [shouted at|cursed|insulted] {me} [at the crossing|in the car park|at the till]
the [company|landlord|shop|bank] charged {me} twice and [would not pay it back|ignored {my} letters|called {me} a liar]
a [bully|gang|cruel boy] [teased|hit|mocked] {my} little [brother|sister|cousin] in front of [the whole class|everybody|{my} eyes]
{my} [cousin|friend|partner] [cheated|broke the rules] in the [game|race|card match] and then called {me} a [loser|fool|cheat]
the [politician|lawyer|salesman] [swindled|betrayed|robbed] {my} [parents|village|friends] and [got away with it|bragged about it]
""",
    "fear": """
a [huge wolf|brown bear|wild boar|black panther] [growled at {me}|chased {me}|came towards {me}] in the [dark forest|lonely valley|fog]
{I} heard [heavy footsteps|a scream|strange whispers|a scratching noise] behind {me} in the [empty house|dark alley|old cellar|graveyard]
a [man with a knife|masked man|shadowy figure] [followed {me}|blocked {my} way|reached for {me}] in the [tunnel|dark street|car park]
the [bridge|ladder|ice|rope] began to [crack|break|shake] under {my} feet high above the [river|rocks|deep water]
{I} {was} trapped in the [burning house|sinking boat|stuck lift|flooded cave] and [could not get out|nobody heard {me}|the lights went out]
a [poisonous snake|giant spider|scorpion] crawled [up {my} leg|towards {my} bed|over {my} blanket] in the dark
the [plane|bus|ship|cable car] {I} sat in suddenly [dropped|lost control|tilted over] in the [storm|thunder|thick fog]
{I} {was} lost in the [woods|desert|mountains|snowstorm] at night and [wolves howled|{my} lamp went out|something moved nearby]
somebody tried to [break down|force open|unlock] {my} [front door|bedroom window|back door] [at midnight|while {I} {was} alone]
a [gunman|robber|kidnapper] [pointed a gun at|threatened|grabbed] {me} and told {me} [not to move|to be silent|to hand over everything]
a [shark|crocodile|tiger] swam [straight at {me}|in circles round {me}|under {my} small boat]
the [brakes of {my} car|wheels of {my} cart|ropes of {my} parachute] failed on the [steep road|cliff road|way down]
{I} woke and saw [a ghostly face|two red eyes|a dark shape] at the [window|foot of {my} bed|end of the hallway]
""",
    "disgust": """
{I} found [a fat slug|a dead fly|maggots|a cockroach|a clump of hair] in {my} [soup|salad|sandwich|rice|porridge]
{I} stepped barefoot into [dog dirt|warm vomit|a rotten fish|a squashed slug] on the [carpet|pavement|kitchen floor|stairs]
the [milk|yoghurt|cream] {I} drank was [sour and lumpy|green with mould|full of worms]
the [toilet|bathtub|sink] in the [hostel|station|bar] was [smeared with filth|clogged with hair|covered with slime], and {I} had to touch it
{my} [roommate|neighbour|cousin] [spat|sneezed slime|picked his nose and wiped it] on {my} [plate|pillow|towel]
{I} opened the [fridge|lunch box|bin] and smelled [rotten meat|mouldy cheese|spoiled eggs] [crawling with maggots|dripping with slime|covered with flies]
a [drunk man|passenger|child] vomited on {my} [shoes|coat|lap|bag] in the [train|bus|taxi]
{I} bit into [an apple|a burger|a pie|a peach] and saw [half a worm|a rotten core|mould|a crushed beetle] inside
the cook [licked the spoon|scratched his sweaty armpit|sneezed into the pot|dropped the meat on the dirty floor] and then served {me} [the stew|the soup|dinner]
{I} pulled a [slimy|stinking|greasy] [clump of hair|rag|dead rat] out of the [drain|pipe|bathtub]
the [cellar|tent|bus seat] {I} sat in reeked of [old sweat|urine|rotting fish|sewage]
{I} {was} served [raw brains|fried cockroaches|a sheep's eyeball|pig's blood] with [slimy|stinking|mouldy] sauce
{I} touched [chewed gum|snot|pus|dried spit] under the [table|seat|handle]
""",
    "surprise": """
a [deer|penguin|kangaroo|parrot] [walked|hopped|strolled] into {my} [kitchen|classroom|office|living room] out of nowhere
the [statue|old clock|portrait|snowman] in the [park|hall|museum|garden] suddenly [spoke|winked|sang] to {me}
{my} [teacher|grandfather|mayor|doctor] came to [work|school|the meeting] on a [camel|unicycle|skateboard|tractor] without any warning
{I} opened the [box|drawer|parcel|suitcase] and instead of [books|socks|tools] [a live duck|a tiny robot|a glowing stone] was inside
{my} [twin|schoolmate|neighbour] whom {I} had not seen for [twenty years|ages] turned up [on {my} doorstep|at {my} table|in {my} train] out of the blue
it [snowed|rained feathers|hailed] in [the middle of July|the desert|the hot summer noon], and nobody could explain it
{I} looked up and [the sky was green|two moons were out|a house flew by|a whale floated past] all of a sudden
the quiet [clerk|librarian|gardener] turned out to be [a secret spy|a famous singer|a world champion|a long lost prince]
{I} flipped the [switch|page|card] and the [room turned upside down|wall swung open|floor lit up] unexpectedly
{my} [shy uncle|strict aunt|silent neighbour] suddenly [did a somersault|burst into song|pulled a coin from {my} ear] at [dinner|the bank|the bus stop]
the [magician|stranger|old woman] made {my} [hat|watch|shoe] [vanish|float|turn into a dove] before {my} eyes
{I} dug in the [garden|sandpit|field] and hit on [an old treasure chest|a dinosaur bone|a buried staircase|a ship's bell] that no one had expected
the [lights went on|curtain fell|doors flew open] and [fifty people|a brass band|a lion tamer] popped up from nowhere in {my} [flat|office|barn]
""",
}

NEUTRAL = """
{I} walked along the [street|canal|path|market] with a [basket|bag|newspaper]
{I} bought [bread|milk|apples|stamps] at the [corner shop|market|post office]
{I} [washed|dried|stacked] the [dishes|cups|plates] in the kitchen
{I} [read|closed|opened] a [book|map|newspaper] at the [table|window]
{I} waited for the [bus|train|tram] near the [school|bridge|town hall]
{I} [painted|mended|measured] a [fence|shelf|chair] in the [yard|shed|garage]
{I} wrote a [list|note|postcard] and put it [on the desk|into a drawer|in {my} pocket]
{my} [brother|neighbour|colleague|sister] [cooked rice|swept the floor|made tea|watered the plants]
the [sun|moon] stood over the [roofs|hills|harbour]
a [cart|van|boat] went past the [mill|church|bakery]
"""

OPENINGS = (
    "",
    "one day",
    "yesterday",
    "last week",
    "this morning",
    "on Monday",
    "on Friday evening",
    "after lunch",
    "before breakfast",
    "in the afternoon",
    "at the weekend",
    "during the holidays",
    "when {I} {was} on the way home",
    "after work",
    "on a quiet day",
    "as {I} arrived in town",
    "later that day",
    "in spring",
)
CLOSINGS = (
    "",
    "",
    "",
    "just before dinner",
    "while {my} neighbour looked on",
    "at about nine",
    "as the clock struck four",
    "and people stopped to look",
    "not far from home",
    "and it took only a minute",
)

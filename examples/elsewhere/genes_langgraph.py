"""cd examples/elsewhere && python genes_langgraph.py   (langgraph 1.2.24, langchain-openai 1.7.4)"""

import asyncio
import json
import operator
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel

model = ChatOpenAI(model="small", base_url="http://127.0.0.1:8000/v1", api_key="none")


class Kind(BaseModel):
    kind: Literal["case", "trial", "neither"]


class Genes(BaseModel):
    genes: list[str]


class Note(TypedDict):
    note: str
    kind: str
    genes: list[str]
    roles: Annotated[list[tuple[int, str]], operator.add]


async def kind(state: Note):
    answer = await model.with_structured_output(Kind).ainvoke(f"Case, trial, or neither?\n\n{state['note']}")
    return {"kind": answer.kind}


async def genes(state: Note):
    answer = await model.with_structured_output(Genes).ainvoke(f"Which genes are named in:\n\n{state['note']}")
    return {"genes": answer.genes}


async def role(state):
    answer = await model.ainvoke(f"What does {state['gene']} do in:\n\n{state['note']}")
    return {"roles": [(state["place"], answer.content)]}


graph = StateGraph(Note)
for step in (kind, genes, role):
    graph.add_node(step.__name__, step)
graph.add_edge(START, "kind")
graph.add_conditional_edges("kind", lambda state: END if state["kind"] == "neither" else "genes")
graph.add_conditional_edges(
    "genes",
    lambda state: [Send("role", {"note": state["note"], "gene": g, "place": i}) for i, g in enumerate(state["genes"])],
)
graph.add_edge("role", END)


async def main():
    notes = [json.loads(line) for line in Path("notes.jsonl").read_text(encoding="utf-8").splitlines()]
    async with AsyncSqliteSaver.from_conn_string("steps.sqlite") as saver:
        app = graph.compile(checkpointer=saver)
        limit = asyncio.Semaphore(16)

        async def row(number, note):
            config = {"configurable": {"thread_id": str(number)}}
            async with limit:
                begun = (await saver.aget_tuple(config)) is not None
                return await app.ainvoke(None if begun else note, config)

        for state in await asyncio.gather(*(row(number, note) for number, note in enumerate(notes))):
            roles = [text for _, text in sorted(state.get("roles", []))]
            print(
                json.dumps({"note": state["note"], "kind": state["kind"], "genes": state.get("genes", []), "roles": roles})
            )


asyncio.run(main())

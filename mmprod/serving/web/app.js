"use strict";

async function showModels() {
  const list = document.getElementById("models");
  const answer = await fetch("/v2/models");
  const content = await answer.json();
  list.replaceChildren();
  for (const name of content.models ?? []) {
    const link = document.createElement("a");
    link.href = `/v2/models/${name}`;
    link.textContent = name;
    const item = document.createElement("li");
    item.append(link);
    list.append(item);
  }
  if (content.error) {
    list.textContent = content.error;
  }
}

showModels();

// The large view: one picture of one case at a time. Without this script the page shows everything all the same.
"use strict";

const dialog = document.querySelector("dialog");
const cases = [...document.querySelectorAll("article")];
const pictures = [...dialog.querySelectorAll("[data-picture]")];
let shown = 0; // of the cases
let picture = 0; // of the case's

function show(nextCase, nextPicture) {
  shown = (nextCase + cases.length) % cases.length;
  picture = (nextPicture + pictures.length) % pictures.length;
  const article = cases[shown];
  const large = article.querySelectorAll(".panel")[picture].cloneNode(true);
  large.querySelectorAll("[id]").forEach((element) => element.removeAttribute("id"));
  document.getElementById("large-picture").replaceChildren(large);
  document.getElementById("large-case").textContent = article.querySelector("h3").textContent;
  document.getElementById("large-about").textContent =
    `${shown + 1} of ${cases.length}, ${article.querySelector(".about").textContent}`;
  pictures.forEach((button, index) => button.setAttribute("aria-pressed", index === picture));
  dialog.querySelectorAll("[data-key]").forEach((key) => {
    key.hidden = !key.dataset.key.split(" ").includes(pictures[picture].textContent);
  });
}

function open(nextCase, nextPicture) {
  show(nextCase, nextPicture);
  dialog.showModal(); // Escape closes it, and Tab stays within
}

const keys = {
  ArrowLeft: () => show(shown - 1, picture),
  ArrowRight: () => show(shown + 1, picture),
  ArrowUp: () => show(shown, picture - 1),
  ArrowDown: () => show(shown, picture + 1),
};

document.documentElement.classList.add("scripted");
cases.forEach((article, index) => {
  article.querySelector(".enlarge").addEventListener("click", (event) => {
    event.preventDefault();
    open(index, pictures.length - 1);
  });
  article.querySelectorAll(".panel").forEach((panel, which) => panel.addEventListener("click", () => open(index, which)));
});
pictures.forEach((button, index) => button.addEventListener("click", () => show(shown, index)));
dialog.querySelectorAll("[data-go]").forEach((button) =>
  button.addEventListener("click", () => show(shown + Number(button.dataset.go), picture)),
);
dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key in keys && !event.altKey && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    keys[event.key]();
  }
});
dialog.addEventListener("close", () => cases[shown].querySelector(".enlarge").focus()); // also of another case
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));

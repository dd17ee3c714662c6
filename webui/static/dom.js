// Create elements, and lists of elements.

/** Return a new element with a tag, a class and a text. */
export function make(tag, className = '', text = '') {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== '') node.textContent = text;
  return node;
}

/** Return a new button that calls `press` when it is clicked. */
export function makeButton(className, text, press) {
  const button = make('button', className, text);
  button.type = 'button';
  button.addEventListener('click', press);
  return button;
}

// Parent element -> the children that `showList` has put into it, as a map of key -> node.
const shown = new WeakMap();

/**
 * Show a list in a parent element, with one child for each value. A child is kept as long as a value has its key: a click
 * would be lost if an answer of the server replaced the child between pressing and releasing the button.
 * keyOf: (value, place) -> a unique key. create: value -> a new node. fill: (node, value, place), updates the node.
 */
export function showList(parent, values, keyOf, create, fill = () => {}) {
  const before = shown.get(parent) ?? new Map();
  const now = new Map();
  values.forEach((value, place) => {
    const key = keyOf(value, place);
    now.set(key, before.get(key) ?? create(value));
    fill(now.get(key), value, place);
  });
  shown.set(parent, now);
  const nodes = [...now.values()];
  const isSame = nodes.length === parent.children.length && nodes.every((node, at) => node === parent.children[at]);
  if (!isSame) parent.replaceChildren(...nodes);
}

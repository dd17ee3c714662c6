// Making elements, and lists of them.

/** Return a new element: its tag, its class, what it says. */
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

// Parent -> the children that `showList` has put into it: key -> node.
const shown = new WeakMap();

/**
 * Show a list in a parent, a child for each value. A child stays as long as a value has its key: one that is replaced while
 * somebody clicks on it, because an answer comes just then, would lose that click.
 * keyOf: (value, place) -> no other value's. create: value -> node. fill: (node, value, place) -> what of the node may change.
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

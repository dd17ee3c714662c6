// Show a job's pictures: the playing preview, the film so far, and the result to download. Elements are updated in place and
// only if an address differs, so that nothing flickers and a playing film goes on.
import { make } from './dom.js';
import { onAnswer } from './polling.js';

function setSource(node, address) {
  if ((node.getAttribute('src') || '') === address) return;
  if (address) {
    node.setAttribute('src', address);
    return;
  }
  node.removeAttribute('src');
  node.load?.();
}

export function showViewer({ element, props, trigger, watch }) {
  const find = (name) => element.querySelector(name);
  const useButtons = [...element.querySelectorAll('.use')];
  let preview = '';

  function showPictures(value, labels) {
    const picture = value.picture || '';
    const film = picture ? '' : value.film || '';
    setSource(find('video'), film);
    setSource(find('.picture'), picture);
    setSource(find('.preview'), preview);
    const ratio = value.width ? `${value.width} / ${value.height}` : '';
    for (const node of [find('video'), find('.picture'), find('.preview')]) node.style.aspectRatio = ratio;
    find('video').hidden = !film;
    find('.picture').hidden = !picture;
    find('.made').hidden = !(film || picture);
    find('.live').hidden = !preview;
    find('.made figcaption').textContent = value.running && film ? labels.so_far : '';
    find('.live figcaption').textContent = preview ? labels.preview : '';
    find('.empty').textContent = labels.empty || '';
    find('.empty').hidden = Boolean(preview || film || picture);
    element.dataset.filled = preview || film || picture ? 'yes' : 'no';
  }

  function showResult(value, labels) {
    const { result } = value;
    find('.result').hidden = !result;
    if (!result) return;
    Object.assign(find('.download'), { href: result.url, download: result.name });
    find('.download').textContent = labels.download;
    find('.end').textContent = value.end;
    find('.facts').textContent = value.facts;
    find('.folder').textContent = labels.folder;
    for (const button of useButtons) {
      button.hidden = !(button.dataset.field in value.uses);
      button.textContent = value.uses[button.dataset.field] || '';
    }
  }

  function showMetadata(pairs, label) {
    find('.metadata').hidden = !pairs.length;
    find('.metadata summary').textContent = label;
    const cells = pairs.flatMap(([name, text]) => [make('dt', '', name), make('dd', '', text)]);
    find('.metadata dl').replaceChildren(...cells);
  }

  function show() {
    const value = props.value || {};
    const labels = value.labels || {};
    showPictures(value, labels);
    showResult(value, labels);
    showMetadata(value.metadata || [], labels.metadata || '');
  }

  for (const button of useButtons) {
    button.addEventListener('click', () => trigger('click', { field: button.dataset.field }));
  }
  find('.folder').addEventListener('click', () => trigger('click', { field: 'folder' }));
  show();
  watch('value', show);
  onAnswer((answer) => {
    if (answer.preview === preview) return;
    preview = answer.preview;
    show();
  });
}

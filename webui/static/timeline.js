// The strip of a film's sections, and the values of single sections: JSON in hidden boxes, so that one cell's components serve a
// hundred sections. Functions with `all` take and return the JSON of all sections' values.
import { make, makeButton, showList } from './dom.js';

// An upload takes its time, and another cell may be open when it is there: file -> the section that it was dropped on.
const dropped = new Map();
let touched = null;

const parse = (all) => JSON.parse(all || '{}');

function put(all, section, value) {
  if (section === '') return all;
  const values = parse(all);
  if (value === undefined) delete values[section];
  else values[section] = value;
  return JSON.stringify(values);
}

/** Open no section: until the clicked one's values are in their boxes, or they would go to the one that was open before. */
export const closeSection = () => '';

export const setPrompt = (value, section, all) => put(all, section, value?.trim() ? value : undefined);

export const removePicture = (_, section, all) => put(all, section, undefined);

/** 0 is a scale like others, 1 is what a section has without one of its own; an empty box is null, which is refused. */
export const setScale = (value, section, all) => put(all, section, value === 1 ? undefined : value);

/** Give an uploaded picture to the section that it was dropped on -> [all, that section if it is open]. */
export function setPicture(value, section, all) {
  const own = dropped.get(value?.orig_name) ?? touched ?? section;
  dropped.delete(value?.orig_name);
  return [value ? put(all, own, value.path) : all, own === section ? own : ''];
}

/** Return the opened section if it has a picture that is not shown, because it came while the section was looked up. */
export function latePicture(shown, section, all) {
  const own = parse(all)[section];
  return own && shown?.path !== own ? `${section} ${Date.now()}` : '';
}

/** Copy keyframe 0 into even sections, 1 into odd ones. strip: the strip's value. */
export function copyKeyframes(all, strip, overwrite) {
  const values = parse(all);
  for (let section = 2; section < strip.count; section++) {
    if (values[section % 2] && (overwrite || !values[section])) values[section] = values[section % 2];
  }
  return JSON.stringify(values);
}

function noteSection(event) {
  if (!event.target.closest?.('#section-picture')) return;
  touched = document.querySelector('#section-title [data-section]')?.dataset.section ?? null;
  for (const file of event.dataTransfer?.files || event.target.files || []) dropped.set(file.name, touched);
}

function cellParts(cell) {
  const top = make('span', 'top');
  top.append(make('span', 'time', cell.time), make('span', 'number', cell.number));
  const parts = [top];
  if (cell.picture !== undefined) {
    const picture = make('span', `picture${cell.inherited ? ' inherited' : ''}`);
    if (cell.picture) picture.append(Object.assign(make('img'), { src: cell.picture, alt: '' }));
    picture.append(make('span', 'note', cell.note));
    parts.push(picture);
  }
  parts.push(make('span', `prompt${cell.own ? '' : ' common'}`, cell.prompt));
  if (cell.lora) parts.push(make('span', 'lora', cell.lora));
  return parts;
}

/** Draw the strip; a click on a cell carries its section. */
export function show({ element, props, trigger, watch }) {
  const strip = element.querySelector('.strip');
  let selected = null;

  function createCell(cell) {
    const button = makeButton('', '', () => {
      selected = cell.number;
      redraw();
      trigger('click', { section: cell.number });
    });
    button.dataset.section = cell.number;
    button.setAttribute('role', 'option');
    return button;
  }

  function fillCell(button, cell) {
    button.className = cell.tone + (cell.gone ? ' gone' : '');
    button.setAttribute('aria-selected', cell.number === selected);
    button.replaceChildren(...cellParts(cell));
  }

  function redraw() {
    const { cells = [], label = '' } = props.value || {};
    const left = strip.scrollLeft;
    const focused = document.activeElement?.closest?.('[data-section]')?.dataset.section;
    strip.setAttribute('aria-label', label);
    showList(strip, cells, (cell) => cell.number, createCell, fillCell);
    strip.scrollLeft = left;
    if (focused !== undefined) strip.querySelector(`[data-section="${focused}"]`)?.focus({ preventScroll: true });
  }

  for (const kind of ['drop', 'change', 'click', 'paste']) document.addEventListener(kind, noteSection, true);
  redraw();
  watch('value', redraw);
}

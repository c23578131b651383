/** The browser of this machine, for the scripts of this folder. */

import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";

const BROWSERS = ["chromium", "chromium-browser", "google-chrome"];
export const FLAGS = (
  "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run " +
  "--disable-background-networking --disable-component-update --disable-sync"
).split(" ");

export function findBrowser() {
  const places = process.env.PATH.split(delimiter).flatMap((folder) => BROWSERS.map((name) => join(folder, name)));
  const found = process.env.CHROMIUM || places.find(existsSync);
  if (!found) throw new Error(`None of ${BROWSERS.join(", ")} found. Install one, or say where it is: CHROMIUM=PATH`);
  return found;
}

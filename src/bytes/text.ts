/**
 * Text that a guest wrote, made fit to be shown (H25).
 */

/** Controls, what reorders or hides text (bidirectional marks, zero-width and tag characters), lone surrogates. */
export const UNSHOWABLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** `text` with everything that a terminal or a page might obey written as `\u{…}`. */
export function printable(text: string): string {
  return text.replace(UNSHOWABLE, (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`);
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The name of a file as it may be shown: controls are escaped, and what is not UTF-8 becomes `\xNN`. */
export function shownName(bytes: Uint8Array): string {
  try {
    return printable(utf8.decode(bytes)).replaceAll("/", "\\x2f");
  } catch {
    return Array.from(bytes, (byte) =>
      byte >= 0x20 && byte < 0x7f && byte !== 0x2f
        ? String.fromCharCode(byte)
        : `\\x${byte.toString(16).padStart(2, "0")}`,
    ).join("");
  }
}

/** placeholder */
export const OWNER = { backup: -17 } as const;
const SYSTEM_RECORDS = 16;
export function ownerOf(number: number): number {
  return number < SYSTEM_RECORDS && number !== 5 ? -1 - number : number;
}

//! Constants of a template that the compiler works out by itself: `'a' * 100000000` is a text of that length before
//! anything is rendered. Finds what would become large, and builds none of it.

use minijinja::Error;
use minijinja::machinery::ast::{BinOp, BinOpKind, Call, CallArg, Expr, Macro, Spanned, Stmt};
use minijinja::value::Value;

use super::budget;

/// Constants that need more than is left.
pub(super) struct TooLarge {
    /// The line they are worked out in, from 1.
    pub(super) line: usize,
    /// What would be built.
    pub(super) error: Error,
}

/// Takes all constants of a template from the budget.
///
/// # Errors
/// They need more than is left.
pub(super) fn charge(statement: &Stmt<'_>) -> Result<(), TooLarge> {
    match statement {
        Stmt::Template(template) => statements(&template.children),
        Stmt::EmitExpr(emit) => expression(&emit.expr),
        Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => Ok(()),
        Stmt::ForLoop(each) => {
            expressions([&each.target, &each.iter].into_iter().chain(&each.filter_expr))?;
            statements(&each.body)?;
            statements(&each.else_body)
        }
        Stmt::IfCond(condition) => {
            expression(&condition.expr)?;
            statements(&condition.true_body)?;
            statements(&condition.false_body)
        }
        Stmt::WithBlock(with) => {
            expressions(with.assignments.iter().flat_map(|(target, value)| [target, value]))?;
            statements(&with.body)
        }
        Stmt::Set(set) => expressions([&set.target, &set.expr]),
        Stmt::SetBlock(set) => {
            expressions([&set.target].into_iter().chain(&set.filter))?;
            statements(&set.body)
        }
        Stmt::AutoEscape(escape) => {
            expression(&escape.enabled)?;
            statements(&escape.body)
        }
        Stmt::FilterBlock(filter) => {
            expression(&filter.filter)?;
            statements(&filter.body)
        }
        Stmt::Block(block) => statements(&block.body),
        Stmt::Import(import) => expressions([&import.expr, &import.name]),
        Stmt::FromImport(import) => {
            expression(&import.expr)?;
            expressions(import.names.iter().flat_map(|(name, alias)| [name].into_iter().chain(alias)))
        }
        Stmt::Extends(extends) => expression(&extends.name),
        Stmt::Include(include) => expression(&include.name),
        Stmt::Macro(declared) => declaration(declared),
        Stmt::CallBlock(block) => {
            call(&block.call)?;
            declaration(&block.macro_decl)
        }
        Stmt::Do(action) => call(&action.call),
    }
}

fn statements(all: &[Stmt<'_>]) -> Result<(), TooLarge> {
    all.iter().try_for_each(charge)
}

fn declaration(declared: &Macro<'_>) -> Result<(), TooLarge> {
    expressions(declared.args.iter().chain(&declared.defaults))?;
    statements(&declared.body)
}

fn call(call: &Call<'_>) -> Result<(), TooLarge> {
    expression(&call.expr)?;
    arguments(&call.args)
}

fn arguments(all: &[CallArg<'_>]) -> Result<(), TooLarge> {
    expressions(all.iter().map(|argument| match argument {
        CallArg::Pos(value)
        | CallArg::Kwarg(_, value)
        | CallArg::PosSplat(value)
        | CallArg::KwargSplat(value) => value,
    }))
}

fn expressions<'a, 'b: 'a>(all: impl IntoIterator<Item = &'a Expr<'b>>) -> Result<(), TooLarge> {
    all.into_iter().try_for_each(expression)
}

/// Innermost first, so that what an operator works on is known to be small before it is worked out.
fn expression(value: &Expr<'_>) -> Result<(), TooLarge> {
    match value {
        Expr::Var(_) | Expr::Const(_) => Ok(()),
        Expr::Slice(slice) => {
            expressions([&slice.expr].into_iter().chain(&slice.start).chain(&slice.stop).chain(&slice.step))
        }
        Expr::UnaryOp(unary) => expression(&unary.expr),
        Expr::BinOp(binary) => {
            expressions([&binary.left, &binary.right])?;
            operator(binary)
        }
        Expr::Compare(compare) => {
            expressions([&compare.expr].into_iter().chain(compare.ops.iter().map(|next| &next.expr)))
        }
        Expr::IfExpr(choice) => {
            expressions([&choice.test_expr, &choice.true_expr].into_iter().chain(&choice.false_expr))
        }
        Expr::Filter(filter) => {
            expressions(&filter.expr)?;
            arguments(&filter.args)
        }
        Expr::Test(test) => {
            expression(&test.expr)?;
            arguments(&test.args)
        }
        Expr::GetAttr(attribute) => expression(&attribute.expr),
        Expr::GetItem(item) => expressions([&item.expr, &item.subscript_expr]),
        Expr::Call(called) => call(called),
        Expr::List(list) => expressions(&list.items),
        Expr::Map(map) => expressions(map.keys.iter().chain(&map.values)),
    }
}

/// Takes what an operator between two constants makes.
fn operator(binary: &Spanned<BinOp<'_>>) -> Result<(), TooLarge> {
    let what = match binary.op {
        BinOpKind::Mul => "`*`",
        BinOpKind::Add => "`+`",
        BinOpKind::Concat => "`~`",
        BinOpKind::In => "`in`",
        _ => return Ok(()),
    };
    let (Some(left), Some(right)) = (binary.left.as_const(), binary.right.as_const()) else { return Ok(()) };
    let size = |value: &Value| match value.is_number() {
        true => 0,
        false => budget::text_size(value),
    };
    let (left, right) = match binary.op {
        BinOpKind::Mul => match (left.as_usize(), right.as_usize()) {
            (_, Some(times)) => (size(&left).saturating_mul(times as u64), 0),
            (Some(times), _) => (size(&right).saturating_mul(times as u64), 0),
            (None, None) => (0, 0),
        },
        // Numbers are texts here.
        BinOpKind::Concat => (budget::text_size(&left), budget::text_size(&right)),
        _ => (size(&left), size(&right)),
    };
    budget::charge(what, left.saturating_add(right))
        .map(drop)
        .map_err(|error| TooLarge { line: binary.span().start_line.into(), error })
}
